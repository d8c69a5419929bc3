"""From results to tables, plots and files."""
