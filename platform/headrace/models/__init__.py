"""Models and the contract that every one of them keeps.

Rooms above import the modules here by name, and only inside the processes that run models: river, LightGBM and numba
take seconds to import.
"""
