"""Guidance classes of the core. Those of the extension live in the extension."""
