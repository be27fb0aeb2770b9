"""A class-conditional set of 32x32 RGB pictures, rendered from (seed, index): eight solids in random light."""
