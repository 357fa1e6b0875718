"""Tools the core and its extensions share; each submodule is imported by name where it is used."""
