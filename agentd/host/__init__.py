"""Plugins in this process: found, loaded, checked, called, watched."""
