"""Schedules: queries that are asked at the times of a cron expression."""
