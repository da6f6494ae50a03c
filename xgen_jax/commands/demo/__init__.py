"""The page of `launch/demo.py`: `serve` starts it, `page` lays it out, `studio` computes."""
