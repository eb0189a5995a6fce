"""Reports for a privacy officer and an engineer: each page is one self-contained HTML file."""
