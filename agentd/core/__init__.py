"""Decisions: values and the time in, decisions out. No clock, no chance, no socket, no disk."""
