"""Models of runs in use: a server that OpenAI's clients can ask, and a conversation in the terminal."""
