"""Metrics: pure functions of counts, and states of counts that are updated, merged by addition, and computed."""
