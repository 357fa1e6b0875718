"""Systems: the Lightning modules that train and evaluate."""
