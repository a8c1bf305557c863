"""Pure mathematics: moments, comparisons, intervals, power. Nothing here reads or writes."""
