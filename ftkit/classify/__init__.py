"""The stages of a classification run: training, evaluation, and the merge."""
