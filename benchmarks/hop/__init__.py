"""What a hop costs.

- `paced`: a server in the way of OpenAI's API that streams tokens at a pace; a text worker stands in front of it.
- `bare`: the least that a hop in Python can be, to compare with.
- `processes`: starts them, and reads what the kernel says of their CPU time and memory.
- `streams`: many streams at once over one client, checked token by token.
"""
