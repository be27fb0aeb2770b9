"""KV blocks shared between workers through Redis: written behind, restored where that beats computing them anew."""
