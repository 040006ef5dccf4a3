"""The main job on real input: `python -m demo` runs the whole loop on twelve agent processes."""
