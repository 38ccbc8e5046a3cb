"""The edge to the API server: our objects as models, and caches of them that follow along."""
