from finetuning_world import settings, world

__all__ = ["settings", "world"]
