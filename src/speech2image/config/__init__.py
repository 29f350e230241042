"""Configuration: typed schemas, validation across groups, safe instantiation, stable run names."""
