"""DreamMapping: text to 3D by Variational Distribution Mapping, as an extension of threestudio."""
