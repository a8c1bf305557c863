"""What happened: the envelope of an event, the taxonomy, and a world that makes them up."""
