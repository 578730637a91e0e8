"""Row shapes: which fields the examples of a kind of task have, and ten ways each to ask for the answer.

The words are this project's own. As in FLAN 2021 some templates are turned around: they give the answer and ask for the
input, so that a task is seen from both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stemma.mixtures.tasks import Template

Turned = tuple[str, str]


@dataclass(frozen=True)
class Shape:
    """`about`: what tasks have it; `templates`: ten ways to ask; `inverted`: those of inverted rows."""

    about: str
    templates: tuple[Template, ...]
    inverted: tuple[Template, ...] = ()


def _shape(about: str, asked: Sequence[str], turned: Sequence[Turned] = (), inverted: Sequence[Turned] = ()) -> Shape:
    return Shape(
        about,
        (*(Template(text) for text in asked), *(Template(*pair, turned=True) for pair in turned)),
        tuple(Template(*pair, turned=True) for pair in inverted),
    )


# how a rationale and its answer are written (google-research/FLAN, flan/v2/templates.py, has these and others)
CHAINS = ("{rationale}\nTherefore, the answer is {answer}.", "{rationale} So the answer is {answer}.")
_THINKING = (
    "{question}\nThink it through step by step.",
    "{question}\nReason first, then answer.",
    "Answer the question, and show how you get there.\n{question}",
    "{question}\nWork it out before you answer.",
    "Here is a question that needs some thought:\n{question}\nThoughts and answer:",
    "{question}\nLet us go one step at a time.",
    "Explain, then conclude.\n\n{question}",
    "Question: {question}\nReasoning, then the answer:",
    "Solve this and give your reasons.\n{question}",
    "{question}\nWhat follows, and why?",
)

SHAPES: dict[str, Shape] = {
    "entailment": _shape(
        "natural language inference: premise, hypothesis",
        (
            "{premise}\nDoes it follow that {hypothesis}?",
            "Suppose that this is so: {premise}\nCan we conclude the following? {hypothesis}",
            "Premise: {premise}\nHypothesis: {hypothesis}\nDoes the premise entail the hypothesis?",
            "{premise}\nGiven this, what about the claim \"{hypothesis}\"?",
            "Read the text and judge the statement.\nText: {premise}\nStatement: {hypothesis}",
            "If \"{premise}\" is true, is \"{hypothesis}\" true as well?",
            "{premise}\n\nStatement: {hypothesis}\nIs the statement supported by the text above?",
            "Someone tells you: {premise}\nWould you then believe this: {hypothesis}",
        ),
        (
            ("Write a text and a statement about it, such that the answer to whether the one follows is: {answer}",
             "Text: {premise}\nStatement: {hypothesis}"),
            ("{premise}\nWrite a statement for which the answer to whether it follows is: {answer}", "{hypothesis}"),
        ),
    ),
    "ending": _shape(
        "commonsense: how a text goes on: text",
        (
            "{text}\nWhat comes next?",
            "Choose how this goes on: {text}",
            "{text}\nWhich continuation makes sense?",
            "How does the following end?\n{text}",
            "Complete the text sensibly.\n{text}",
            "What is most likely after this? {text}",
            "Read the beginning and find its end.\nBeginning: {text}",
            "{text}\nHow would you go on?",
        ),
        (
            ("This is how a text ends: {answer}\nWrite its beginning.", "{text}"),
            ("What could come before the following?\n{answer}", "{text}"),
        ),
    ),
    "sentiment": _shape(
        "sentiment of a text: text",
        (
            "{text}\nWhat is the sentiment of this text?",
            "How does the writer feel about it?\n{text}",
            "Read the review and say how it sounds.\n{text}",
            "Review: {text}\n{options}Sentiment:",
            "Judge the tone of the following: {text}",
            "{text}\nWhat opinion does this express?",
            "Would you call this text favourable? {text}\nGive its sentiment.",
        ),
        (
            ("Write a review whose sentiment is: {answer}", "{text}"),
            ("Make up a text with this sentiment: {answer}", "{text}"),
            ("Sentiment: {answer}\nA text that shows it:", "{text}"),
        ),
    ),
    "paraphrase": _shape(
        "whether two sentences say the same: first, second",
        (
            "Do these two sentences mean the same?\n{first}\n{second}",
            "First: {first}\nSecond: {second}\nHow do the two compare in meaning?",
            "Is \"{second}\" another way of saying \"{first}\"?",
            "{first}\n{second}\nAre these sentences alike in what they say?",
            "Compare the meanings.\nA: {first}\nB: {second}",
            "Does one sentence repeat the other in other words?\n1. {first}\n2. {second}",
            "{first}\nWould you say that the next sentence tells the same?\n{second}",
        ),
        (
            ("Here is a sentence: {first}\nWrite one to compare it with. The verdict should be: {answer}", "{second}"),
            ("Write two sentences. Asked whether they mean the same, one would say: {answer}", "{first}\n{second}"),
            ("\"{second}\" was compared with another sentence, with the result: {answer}\nWhat was that sentence?",
             "{first}"),
        ),
    ),
    "question": _shape(
        "questions without a text (closed-book, mathematics): question",
        (
            "{question}",
            "Answer the question: {question}",
            "Question: {question}\n{options}Answer:",
            "What is the answer to this? {question}",
            "Tell me: {question}",
            "Please reply to the following question.\n{question}",
            "Somebody asks you: {question}\nWhat do you say?",
            "{question} Give the answer.",
        ),
        (
            ("Write a question whose answer is: {answer}", "{question}"),
            ("The answer is \"{answer}\". What was asked?", "{question}"),
        ),
    ),
    "structured": _shape(
        "data to text: data",
        (
            "{data}\nSay this in a sentence.",
            "Turn the data into text: {data}",
            "Write a sentence that holds all of these facts.\n{data}",
            "Data: {data}\n{options}Text:",
            "Describe the following in words.\n{data}",
            "What would one write about this? {data}",
            "Put these pieces into a text: {data}",
        ),
        (
            ("{answer}\nWhich data does this sentence hold?", "{data}"),
            ("Take the data out of this text: {answer}", "{data}"),
            ("Text: {answer}\nData:", "{data}"),
        ),
    ),
    "reading": _shape(
        "reading comprehension and questions in a conversation: passage, question",
        (
            "{passage}\n{question}",
            "Read this and answer the question.\n{passage}\nQuestion: {question}",
            "Question: {question}\nFind the answer in the text.\n{passage}",
            "{passage}\n\nAbout the text above: {question}",
            "Text: {passage}\nQuestion: {question}\n{options}Answer:",
            "Here is a passage: {passage}\nNow answer: {question}",
            "Use the text to reply.\n{passage}\n{question}",
            "{question}\nThe following will help you.\n{passage}",
        ),
        (
            ("{passage}\nAsk something about this text that is answered by: {answer}", "{question}"),
            ("Write a passage that answers \"{question}\" with \"{answer}\".", "{passage}"),
        ),
    ),
    "reference": _shape(
        "what a pronoun means: text, pronoun",
        (
            "{text}\nWhat does \"{pronoun}\" mean here?",
            "Who or what is meant by \"{pronoun}\"?\n{text}",
            "Read: {text}\nResolve the word \"{pronoun}\".",
            "In the following, what does \"{pronoun}\" stand for?\n{text}",
            "{text}\nThe word \"{pronoun}\" refers to",
            "Text: {text}\nWord: {pronoun}\n{options}What it refers to:",
            "Find what \"{pronoun}\" points to. {text}",
            "{text}\nPut something else in the place of \"{pronoun}\".",
        ),
        (
            ("Write a sentence in which \"{pronoun}\" means {answer}.", "{text}"),
            ("A text where \"{pronoun}\" stands for {answer}:", "{text}"),
        ),
    ),
    "summary": _shape(
        "summarization: text",
        (
            "{text}\nSum this up.",
            "Give a summary of the following.\n{text}",
            "What is this text about, in short?\n{text}",
            "Write a headline for this: {text}",
            "Text: {text}\n{options}Summary:",
            "Make it shorter.\n{text}",
            "{text}\nWhat matters most in it?",
        ),
        (
            ("Write a text that can be summed up like this: {answer}", "{text}"),
            ("{answer}\nTell that at length.", "{text}"),
            ("Summary: {answer}\nText:", "{text}"),
        ),
    ),
    "translation": _shape(
        "translation: text, source, target (the names of the languages)",
        (
            "Translate into {target}: {text}",
            "{text}\nSay that in {target}.",
            "How does one say this in {target}?\n{text}",
            "{source}: {text}\n{target}:",
            "Put this {source} text into {target}.\n{text}",
            "What is \"{text}\" in {target}?",
            "Here is a sentence in {source}: {text}\nWrite it in {target}.",
        ),
        (
            ("Translate into {source}: {answer}", "{text}"),
            ("{target}: {answer}\n{source}:", "{text}"),
            ("{answer}\nSay that in {source}.", "{text}"),
        ),
    ),
    "topic": _shape(
        "what kind of text something is (topics, questions, acceptability): text",
        (
            "{text}\nWhich of the kinds is this?",
            "Put the following into a class: {text}",
            "How would you label this?\n{text}",
            "Text: {text}\n{options}Label:",
            "Read it and choose its kind.\n{text}",
            "{text}\nChoose the label that fits.",
            "To which kind does this belong? {text}",
            "What would you call this?\n{text}",
        ),
        (
            ("Write something that would be labelled: {answer}", "{text}"),
            ("Label: {answer}\nText:", "{text}"),
        ),
    ),
    "sense": _shape(
        "whether a word means the same in two sentences: word, first, second",
        (
            "{first}\n{second}\nIs \"{word}\" used alike in both?",
            "Compare what \"{word}\" means in these sentences.\n{first}\n{second}",
            "Word: {word}\nFirst: {first}\nSecond: {second}\nHow do the two uses compare?",
            "Does \"{word}\" keep its meaning from the first sentence to the second?\n{first}\n{second}",
            "Here is the word \"{word}\" twice.\n{first}\n{second}\nJudge whether its sense changes.",
            "Look at \"{word}\": {first} / {second}\nWhat do you say about its senses?",
            "In \"{first}\" and in \"{second}\", are the senses of \"{word}\" one?",
        ),
        (
            ("Write two sentences with \"{word}\". Of its senses one would say: {answer}", "{first}\n{second}"),
            ("{first}\nWrite another sentence with \"{word}\", for which the verdict on the senses is: {answer}",
             "{second}"),
            ("\"{second}\" and another sentence have the word \"{word}\"; the verdict was: {answer}\nThe other one:",
             "{first}"),
        ),
    ),
    "rewriting": _shape(
        "a text put right (punctuation, case, spaces): text",
        (
            "{text}\nPut this right.",
            "Correct the following text: {text}",
            "Write it as it should be written.\n{text}",
            "Text: {text}\n{options}Corrected:",
            "Mend what is wrong here.\n{text}",
            "How should this be written? {text}",
            "Repair the text below.\n{text}",
        ),
        (
            ("{answer}\nWrite this with mistakes.", "{text}"),
            ("Make the text worse: {answer}", "{text}"),
            ("Corrected: {answer}\nBefore:", "{text}"),
        ),
    ),
    "instruction": _shape(
        "Natural Instructions: definition, input",
        (
            "{definition}\n{input}",
            "{definition}\n\nInput: {input}\n{options}Output:",
            "Do the following.\n{definition}\nHere is the input: {input}",
            "Task: {definition}\nInput: {input}",
            "{definition}\nApply it to this: {input}",
            "You are given a task. {definition}\n{input}",
            "Input: {input}\nWhat to do with it: {definition}",
            "{input}\n\n{definition}",
            "Instructions: {definition}\n\nCase: {input}\n{options}Result:",
            "{definition}\nNow it is your turn.\n{input}",
        ),
    ),
    "dialogue": _shape(
        "what is replied in a dialogue: dialogue",
        (
            "{dialogue}\nWhat is said next?",
            "Go on with the conversation.\n{dialogue}",
            "{dialogue}\n{options}Reply:",
            "Read the conversation and answer.\n{dialogue}",
            "Here is a dialogue so far: {dialogue}\nWrite the next turn.",
            "Conversation:\n{dialogue}\n{options}Next:",
            "What would you say now?\n{dialogue}",
            "{dialogue}\nTake the next turn.",
            "Complete the talk below.\n{dialogue}",
            "You take part in this: {dialogue}\n{options}Your words:",
        ),
        inverted=(
            ("What was said before this? {answer}", "{dialogue}"),
            ("Last turn: {answer}\nWrite what led to it.", "{dialogue}"),
            ("A conversation ends with: {answer}\nThe conversation:", "{dialogue}"),
        ),
    ),
    "reasoning": Shape(
        "questions with a chain of thought: question, rationale",
        tuple(Template(text, CHAINS[i % len(CHAINS)]) for i, text in enumerate(_THINKING)),
        tuple(
            Template(*pair, turned=True)
            for pair in (
                ("The answer is {answer}, for this reason: {rationale}\nWhat was the question?", "{question}"),
                ("{rationale}\nSo it is {answer}. Write the question.", "{question}"),
                ("Write a question with the answer {answer} and its reasoning.", "Question: {question}\n{rationale}"),
                ("{question}\nThe answer is {answer}. Explain why.", "{rationale}"),
            )
        ),
    ),
}  # fmt: skip
