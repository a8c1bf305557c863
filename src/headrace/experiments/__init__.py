"""Who sees what, and what it changed: assignment, sample ratio, analysis."""
