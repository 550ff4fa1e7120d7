"""Tests of the operators against their definitions in float64."""
