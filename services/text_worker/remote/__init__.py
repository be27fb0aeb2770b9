"""`--engine openai`: the text contract in front of any server that speaks the OpenAI API."""
