"""Plugins, in this process or in one of their own: found, loaded, checked, called, watched."""
