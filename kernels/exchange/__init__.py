"""The pyramid exchange: learned resampling by two between the levels of an STP block."""
