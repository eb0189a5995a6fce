"""Reports a privacy officer and an engineer can both read: one HTML file, nothing else needed."""
