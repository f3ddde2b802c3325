"""Bytes to vocabulary and back, one module per platform. Pure: it describes requests and reads answers."""
