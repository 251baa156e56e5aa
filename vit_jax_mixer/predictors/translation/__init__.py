"""How good translations are: `figures`, and what `evaluate` writes of them: `report`."""
