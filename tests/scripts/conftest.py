from relis_world import relis

__all__ = ["relis"]
