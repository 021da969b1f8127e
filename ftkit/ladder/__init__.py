"""The ladder: every export of a run's model scored on the run's own test rows, beside the model it was made from."""
