"""Forwards as graphs: traced, with the conditions under which a graph stands for its forward."""
