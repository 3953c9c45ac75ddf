"""Answer from a text: `.venv/bin/python examples/answer_from_text.py README.md "How do I rotate a key?"`."""

import sys
from operator import mul
from pathlib import Path

from app import ChatMessage, chat_completion, close, generate_embeddings

PARAGRAPHS = 3
"""So many of the text, those nearest to the question, are shown to the model."""

file, question = sys.argv[1:]
paragraphs = [each for each in Path(file).read_text(encoding="utf-8").split("\n\n") if each.strip()]
asked, *vectors = (result.embedding for result in generate_embeddings([question, *paragraphs]))
likeness = [sum(map(mul, asked, vector)) for vector in vectors]
nearest = sorted(range(len(paragraphs)), key=likeness.__getitem__, reverse=True)[:PARAGRAPHS]
text = "\n\n".join(paragraphs[each] for each in sorted(nearest))
answer = chat_completion(
    [ChatMessage("system", "Answer from the text alone."), ChatMessage("user", f"{text}\n\n{question}")]
)
print(answer.content)
close()
