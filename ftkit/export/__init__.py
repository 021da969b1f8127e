"""Trained models as files that others read: merged, and in other formats, with the proof that each is what it was."""
