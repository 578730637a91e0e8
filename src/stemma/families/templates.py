"""The published ways to write instructions and conversations as text, exactly, each with where it was read."""

from stemma.declare.tuning import Instructions, Turns

PLAIN = Turns(user="{}", assistant="{}", generation="")  # the prompt as it came, then the answer

# Wei et al. 2021, section 2.4, and Chung et al. 2022, appendix E: an end token between input and target, nothing else
FLAN = Turns(user="{}</s>", assistant="{}</s>", generation="")

# tatsu-lab/stanford_alpaca, train.py; the answer follows the colon directly
_TASK = "Below is an instruction that describes a task"
_ASK = "Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}"
ALPACA = Instructions(
    f"{_TASK}, paired with an input that provides further context. {_ASK}\n\n### Input:\n{{input}}\n\n### Response:",
    f"{_TASK}. {_ASK}\n\n### Response:",
)

# lm-sys/FastChat, fastchat/conversation.py (vicuna_v1.1): v1.1, v1.3 and v1.5
VICUNA = Turns(
    system="{} ",
    default="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    user="USER: {} ",
    assistant="ASSISTANT: {}</s>",
    generation="ASSISTANT:",
)

# the same (zero_shot): v0; no token ends an answer but the marker of the next turn, which is ordinary text
VICUNA_V0 = Turns(
    system="{}\n###",
    default="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    user=" Human: {}\n###",
    assistant=" Assistant: {}\n###",
    generation=" Assistant:",
)

# OASST1 as QLoRA's data have it; the exact string is from memory
GUANACO = Turns(user="### Human: {}", assistant="### Assistant: {}", generation="### Assistant:")

# young-geng/EasyLM, docs/koala.md: no space after "GPT:", because prompt and answer are tokenised apart
KOALA = Turns(system="BEGINNING OF CONVERSATION: ", user="USER: {} ", assistant="GPT:{}</s>", generation="GPT:")

# ShishirPatil/gorilla@dab51981, inference: the script of its evaluation, and the command line, which has Vicuna's words
# with a line end behind them
GORILLA = Turns(user="###USER: {}", assistant="###ASSISTANT: {}", generation="###ASSISTANT: ")
GORILLA_CLI = Turns(
    system="{}\n",
    default=VICUNA.default,
    user="USER: {}\n",
    assistant="ASSISTANT: {}</s>",
    generation="ASSISTANT:",
)

# bofenghuang/vigogne, vigogne/processors/alpaca.py; an instruction that an input follows loses its trailing punctuation
_SYSTEM = (
    "### System:\nCi-dessous se trouve une instruction qui décrit une tâche à accomplir. "
    "Rédigez une réponse qui répond de manière précise à la demande.\n\n### Instruction:\n"
)
VIGOGNE = Instructions(
    _SYSTEM + "{instruction} : {input}\n\n### Response:\n",
    _SYSTEM + "{instruction}\n\n### Response:\n",
    trim="!,-.:;?~ ",
)

# the same, vigogne_chat_v2.py: in training this system message, at inference another
VIGOGNE_CHAT_2 = Turns(
    system="<|system|>: {}\n",
    default="Vous êtes un assistant IA qui suit extrêmement bien les instructions. Aidez autant que vous le pouvez.",
    user="<|user|>: {}\n",
    assistant="<|assistant|>: {}</s>",
    generation="<|assistant|>:",
    between="\n",
)

# allenai/open-instruct, open_instruct/dataset_transformation.py (CHAT_TEMPLATES); the newline after the marker matters
TULU = Turns(
    system="<|system|>\n{}\n",
    user="<|user|>\n{}\n",
    assistant="<|assistant|>\n{}</s>",
    generation="<|assistant|>\n",
    between="\n",
)

# meta-llama/llama, llama/generation.py; each pair of turns is encoded alone, and its `<s>` and `</s>` are tokens
LLAMA2 = Turns(
    system="<<SYS>>\n{}\n<</SYS>>\n\n",
    inside=True,
    user="<s>[INST] {} [/INST]",
    assistant=" {} </s>",
    generation="",
    strip=True,
)

# bofenghuang/vigogne, vigogne/processors/vigogne_chat_v3.py: LLaMA-2's tags, without the space before the end; one
# `<s>` begins it all
VIGOGNE_CHAT_3 = Turns(
    system=LLAMA2.system,
    default=VIGOGNE_CHAT_2.default,
    inside=True,
    user="[INST] {} [/INST]",
    assistant=" {}</s>",
    generation="",
    between=" ",
)

# meta-llama/llama3, llama/tokenizer.py (ChatFormat): headers of roles, each followed by two line ends
LLAMA3 = Turns(
    system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
    assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
    tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    strip=True,
)

# facebookresearch/codellama, llama/generation.py: the head and the words of a message are encoded apart, and a
# SentencePiece model puts a space in front of each; here these spaces stand before the line ends and behind `<step>`
CODELLAMA_70B = Turns(
    system=" Source: system \n\n {}<step>",
    user="  Source: user \n\n {}<step>",
    assistant="  Source: assistant\nDestination: user \n\n {}<step>",
    generation="  Source: assistant\nDestination: user \n\n ",
    tokens=("<step>",),
    strip=True,
    always=True,
)

# OpenAI, the description of ChatML
CHATML = Turns(
    system="<|im_start|>system\n{}<|im_end|>\n",
    user="<|im_start|>user\n{}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{}<|im_end|>\n",
    generation="<|im_start|>assistant\n",
    tokens=("<|im_start|>", "<|im_end|>"),
)

# the model card: the block that it shows, and the code beside it, which has a space after "User:"
BELUGA = Turns(
    system="### System:\n{}\n\n",
    user="### User:\n{}\n\n",
    assistant="### Assistant:\n{}",
    generation="### Assistant:\n",
)
BELUGA_CODE = Turns(BELUGA.user.replace("\n{}", " {}"), BELUGA.assistant, BELUGA.generation, BELUGA.system)
