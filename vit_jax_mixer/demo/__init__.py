"""A page in the browser on which models are tried: what it asks (`answers`), how it looks (`page`), as a Space."""
