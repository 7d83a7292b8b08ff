"""The report: an experiment as one HTML file that needs nothing beside itself."""
