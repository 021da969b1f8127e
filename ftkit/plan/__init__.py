"""From a recipe to all that is decided before a weight is loaded, for each task."""
