"""The demo: people who do not exist, a CLIP that knows them, and their removal."""
