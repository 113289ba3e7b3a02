"""Schedules: queries that are asked again and again, at the times that a cron expression says."""
