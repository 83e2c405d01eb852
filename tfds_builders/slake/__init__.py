"""SLAKE: questions in English and Chinese about radiology images."""
