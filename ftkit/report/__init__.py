"""What people look at after a run: terminal summary and report.html, rendered from the run's folder alone."""
