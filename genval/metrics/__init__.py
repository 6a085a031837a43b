"""Figures from integer counts: pure functions, states that add up, and the files they are kept in."""
