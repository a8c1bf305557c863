"""Endpoints: what is asked for a page answers it, and writes down why."""
