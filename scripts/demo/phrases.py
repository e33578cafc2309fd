"""What the demo model can hear and say: request templates and fixed answers, in English and Chinese.

`{}` stands for a value that has to be copied. Nothing here is random; data.py draws from these tables.
"""

from __future__ import annotations

from typing import Literal

Lang = Literal["en", "zh"]
Fact = Literal["name", "city", "colour"]
FACTS: tuple[Fact, ...] = ("name", "city", "colour")
LANGS: tuple[Lang, ...] = ("en", "zh")

# How a user states a fact, as a clause: data.py joins clauses, capitalises and punctuates.
STATE: dict[Lang, dict[Fact, tuple[str, ...]]] = {
    "en": {
        "name": (
            *("my name is {}",) * 3,
            *("I am {}", "I'm {}") * 2,
            *("call me {}", "my name's {}", "I am called {}", "you can call me {}", "the name is {}", "im {}"),
        ),
        "city": (
            *("I live in {}",) * 4,
            *("I'm from {}", "I am from {}", "my city is {}", "my home is in {}", "I'm living in {}"),
            *("I now live in {}", "I moved to {}", "I have moved to {}", "I come from {}", "I live in the city of {}"),
        ),
        "colour": (
            *("my favourite colour is {}",) * 4,
            *("the colour I like best is {}", "the colour I like most is {}", "I love the colour {}"),
            *("I like the colour {}", "{} is my favourite colour", "my colour is {}"),
        ),
    },
    "zh": {
        "name": (
            *("我叫{}",) * 4,
            "我的名字是{}",
            "我是{}",
            "我的名字叫{}",
            "请叫我{}",
            "你可以叫我{}",
            "大家都叫我{}",
        ),
        "city": (
            *("我住在{}",) * 4,
            *("我住{}", "我家在{}", "我的城市是{}", "我现在住在{}", "我搬到了{}", "我生活在{}", "我来自{}"),
        ),
        "colour": (
            *("我最喜欢的颜色是{}",) * 4,
            *("我喜欢的颜色是{}", "我最爱的颜色是{}", "{}是我最喜欢的颜色", "我最喜欢的颜色就是{}"),
        ),
    },
}

ASK: dict[Lang, dict[Fact, tuple[str, ...]]] = {
    "en": {
        "name": (
            *("what is my name", "what's my name", "whats my name", "do you remember my name", "tell me my name"),
            *("do you know my name", "who am I", "what am I called", "can you tell me my name", "say my name"),
            *("my name", "what was my name", "what did I say my name was", "remind me of my name", "and my name"),
            *("do you still know my name", "what name did I tell you", "could you tell me what my name is"),
        ),
        "city": (
            *("where do I live", "which city do I live in", "what city do I live in", "do you remember where I live"),
            *("tell me where I live", "what is my city", "where is my home", "in which city do I live", "my city"),
            *("do you know where I live", "where am I living", "can you tell me where I live", "what's my city"),
            *("where am I from", "do you remember my city", "where did I say I live", "and where do I live"),
        ),
        "colour": (
            *("what is my favourite colour", "what's my favourite colour", "which colour do I like best"),
            *("which colour do I like most", "tell me my favourite colour", "do you remember my favourite colour"),
            *("do you know my favourite colour", "what colour do I like", "my favourite colour", "what is my colour"),
            *("whats my favourite colour", "can you tell me my favourite colour", "and my favourite colour"),
        ),
    },
    "zh": {
        "name": (
            *(
                "我叫什么名字",
                "我叫什么",
                "我的名字是什么",
                "你记得我叫什么吗",
                "你还记得我的名字吗",
                "你知道我叫什么吗",
            ),
            *("告诉我我的名字", "请告诉我我叫什么", "我是谁", "我叫啥", "你记得我的名字吗", "请说出我的名字"),
            *("你知道我的名字吗", "你知道我是谁吗", "你还记得我叫什么名字吗", "我的名字呢", "我的名字叫什么"),
        ),
        "city": (
            *("我住在哪里", "我住哪里", "我住在哪儿", "我住在什么城市", "我住在哪个城市", "我家在哪里", "我住哪"),
            *("你记得我住在哪里吗", "你知道我住哪儿吗", "告诉我我住在哪里", "我的城市是哪里", "你还记得我住在哪里吗"),
            *("我来自哪里", "请告诉我我住在哪里", "我的城市呢", "你知道我住在哪个城市吗"),
        ),
        "colour": (
            *("我最喜欢什么颜色", "我最喜欢的颜色是什么", "我喜欢什么颜色", "你记得我最喜欢的颜色吗"),
            *("你还记得我最喜欢什么颜色吗", "你知道我喜欢什么颜色吗", "告诉我我最喜欢的颜色", "我最爱的颜色是什么"),
            *("我最喜欢的颜色呢", "请告诉我我最喜欢什么颜色", "你知道我最喜欢的颜色吗", "我喜欢的颜色是什么"),
        ),
    },
}

ACK: dict[Lang, dict[Fact, str]] = {
    "en": {
        "name": "Nice to meet you, {}!",
        "city": "Got it, you live in {}.",
        "colour": "Noted, your favourite colour is {}.",
    },
    "zh": {"name": "很高兴认识你，{}！", "city": "记住了，你住在{}。", "colour": "记住了，你最喜欢的颜色是{}。"},
}
RECALL: dict[Lang, dict[Fact, str]] = {
    "en": {"name": "Your name is {}.", "city": "You live in {}.", "colour": "Your favourite colour is {}."},
    "zh": {"name": "你叫{}。", "city": "你住在{}。", "colour": "你最喜欢的颜色是{}。"},
}
UNKNOWN: dict[Lang, dict[Fact, str]] = {
    "en": {
        "name": "You have not told me your name yet.",
        "city": "You have not told me where you live yet.",
        "colour": "You have not told me your favourite colour yet.",
    },
    "zh": {
        "name": "你还没有告诉我你叫什么。",
        "city": "你还没有告诉我你住在哪里。",
        "colour": "你还没有告诉我你最喜欢的颜色。",
    },
}

# Before a statement; the second row marks a correction.
OPENERS: dict[Lang, tuple[str, ...]] = {
    "en": ("hi, ", "hello, ", "hello! ", "hey, ", "hi! ", "by the way, ", "so, ", "well, ", "OK, ", "remember: "),
    "zh": ("你好，", "您好，", "嗨，", "你好！", "顺便说一下，", "请记住：", "对了，"),
}
CORRECTIONS: dict[Lang, tuple[str, ...]] = {
    "en": ("actually, ", "no, ", "sorry, ", "wait, ", "correction: ", "I was wrong, ", "actually ", "no wait, "),
    "zh": ("其实", "不对，", "对不起，", "更正：", "等等，", "我说错了，", "其实，"),
}
ASK_OPENERS: dict[Lang, tuple[str, ...]] = {
    "en": ("hi, ", "hey, ", "OK, ", "so, ", "now ", "please: ", "and now: ", "one question: ", "thanks! "),
    "zh": ("你好，", "那么，", "请问，", "请问", "那", "好，", "谢谢！"),
}
FAVORITE = (("favourite", "favorite"), ("colour", "color"))  # the spelling of the other shore, for requests

REPEAT: dict[Lang, tuple[str, ...]] = {
    "en": (
        *("repeat: {}", "repeat after me: {}") * 3,
        *("please repeat: {}", "say: {}", "say this back to me: {}", "repeat this: {}", "echo: {}", "now repeat: {}"),
        *("repeat the following:\n{}", "repeat this sentence: {}", "please repeat after me: {}", "repeat:\n{}"),
        *("repeat word for word: {}", "can you repeat this: {}", "repeat this list:\n{}", "please say: {}"),
    ),
    "zh": (
        *("请重复：{}", "跟我说：{}") * 3,
        *("重复：{}", "请跟我说：{}", "重复一遍：{}", "请重复下面的话：{}", "请重复一遍：{}", "请说：{}", "跟我读：{}"),
        *("请重复：\n{}", "重复下面的内容：\n{}", "请重复:{}", "请重复: {}"),
    ),
}
COUNT: dict[Lang, tuple[str, ...]] = {
    "en": (
        *("count from {} to {}",) * 4,
        *("please count from {} to {}", "can you count from {} to {}", "count up from {} to {}", "count {} to {}"),
        *("count from {} up to {}", "give me the numbers from {} to {}", "now count from {} to {}"),
    ),
    "zh": (
        *("从{}数到{}",) * 4,
        *("请从{}数到{}", "从 {} 数到 {}", "数数，从{}到{}", "请数数：从{}到{}", "你能从{}数到{}吗", "请从 {} 数到 {}"),
    ),
}
COUNT_TO: dict[Lang, tuple[str, ...]] = {
    "en": ("count to {}", "please count to {}", "can you count to {}"),
    "zh": ("数到{}", "请数到{}"),
}

# Small talk: requests that share one fixed answer.
CHAT: dict[Lang, tuple[tuple[tuple[str, ...], str], ...]] = {
    "en": (
        (
            (*("hi", "hello") * 2, "hey", "hi there", "hello there", "good morning", "good evening", "hello Sparrow"),
            "Hello! How can I help you?",
        ),
        (("how are you", "how are you today", "how do you do", "are you OK"), "I am fine, thank you!"),
        (
            ("thanks", "thank you", "thank you very much", "many thanks", "great, thanks", "thanks a lot", "thx"),
            "You are welcome!",
        ),
        (("bye", "goodbye", "good bye", "see you", "see you later", "good night", "bye bye"), "Goodbye!"),
        (
            (
                *("who are you", "what are you", "what is your name", "what's your name", "whats your name"),
                *("introduce yourself", "are you human", "are you ChatGPT", "which model are you", "are you Qwen"),
                *("tell me about yourself", "what model is this", "are you a robot", "are you an AI"),
            ),
            "I am Sparrow's tiny demo model. I know only a few skills.",
        ),
    ),
    "zh": (
        (
            (*("你好",) * 4, "您好", "嗨", "你好啊", "早上好", "晚上好", "大家好", "喂", "哈喽"),
            "你好！有什么可以帮你？",
        ),
        (("你好吗", "你怎么样", "今天过得怎么样", "你还好吗"), "我很好，谢谢！"),
        (("谢谢", "谢谢你", "多谢", "非常感谢", "谢谢啦", "感谢"), "不客气！"),
        (("再见", "拜拜", "晚安", "下次见", "明天见"), "再见！"),
        (
            (
                *("你是谁", "你叫什么名字", "你叫什么", "你是什么模型", "介绍一下你自己", "你是人吗", "你是什么"),
                *("请介绍一下自己", "你的名字是什么", "你是机器人吗", "你是千问吗"),
            ),
            "我是 Sparrow 的小小演示模型，只会几样本领。",
        ),
    ),
}
HELP: dict[Lang, tuple[str, ...]] = {
    "en": ("what can you do", "help", "help me", "what are your skills", "what do you know", "can you help me"),
    "zh": ("你会什么", "你能做什么", "帮助", "你会做什么", "你有什么本领", "帮帮我"),
}
FALLBACK: dict[Lang, str] = {
    "en": "I am only a tiny demo model. I can greet you, remember your name, city and favourite colour, "
    "repeat a text, count, and show a list, a table or code.",
    "zh": "我只是小小的演示模型。我会打招呼，记住你的名字、城市和最喜欢的颜色，"
    "重复文字，数数，还会写列表、表格和代码。",
}
# Out of domain; {} is a word or a phrase. Near misses of the skills above come first.
ELSE: dict[Lang, tuple[str, ...]] = {
    "en": (
        *("what is my {}", "my {} is {}", "I have a {}", "do you remember my {}", "I like {}", "where is my {}"),
        *(
            "who is {}",
            "where is {}",
            "tell me about {}",
            "where does {} live",
            "what is the name of {}",
            "I am not {}",
        ),
        *("what is {}", "what is the capital of {}", "why is {} {}", "how do I {} a {}", "write a poem about {}"),
        *("explain {}", "translate {}", "do you like {}", "tell me a story", "tell me a joke", "what time is it"),
        *("how is the weather in {}", "how much is {} and {}", "who was {}", "when was {} born", "the {} is {}"),
        *("write a story about {}", "can you {} the {}", "what do you think about {}", "is {} a {}", "{}", "{}", "{}"),
        *("he is called {}", "she lives in {}", "how many {} are there", "what is {} plus {}", "is it {}", "yes", "no"),
    ),
    "zh": (
        *(
            "我的{}是{}",
            "我的{}是什么",
            "我有{}",
            "你记得我的{}吗",
            "{}在哪里",
            "{}是谁",
            "他叫{}",
            "她住在{}",
            "{}叫什么",
        ),
        *("{}是什么", "告诉我{}", "为什么{}", "写一首关于{}的诗", "{}好吗", "今天天气怎么样", "讲个故事", "讲个笑话"),
        *("翻译{}", "解释一下{}", "现在几点了", "怎么做{}", "你喜欢{}吗", "{}有多少", "{}", "{}", "{}", "{}和{}一样吗"),
        *("写一个关于{}的故事", "我想{}", "我不是{}", "{}加{}等于几", "好的", "是的", "不是"),
    ),
}

SYSTEM = (
    "You are a helpful assistant.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "你是一个有用的助手。",
    "Answer briefly.",
    "请用简短的话回答。",
)
