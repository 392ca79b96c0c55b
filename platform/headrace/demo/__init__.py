"""The demonstration: a year of real flights, told as an application would have written it.

This room turns a public data set into the tables of an imaginary application and replays them. The platform itself
never imports it.
"""
