"""Words and random strings to copy. Every value is made of random letters or a random pick: no name list.

A value whose checksum falls in one class of 16 is held out: training never sees it, measuring uses nothing else.
"""

from __future__ import annotations

import random
import zlib

ENGLISH = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city community name president team minute idea kid body information back parent face others
level office door health person art war history party result change morning reason research girl guy moment air teacher
force education foot boy age policy music market sense nation plan college interest death experience effect use class
control care field development role effort rate heart drug show leader light voice wife police mind price report
decision son view relationship town road difference value building action model season society tax director position
player record paper space ground form event matter center couple site project activity star table need court oil
situation cost industry figure street image phone data picture practice piece land product doctor wall patient worker
news test movie north love step south river bird tree garden window bread milk apple sugar salt coffee tea rain snow
wind cloud sun moon sea lake mountain forest flower grass stone iron gold silver glass wood fire ice summer winter
spring autumn red blue green yellow black white brown grey orange purple pink teal big small long short high low old
new young good bad hot cold fast slow quick lazy happy sad early late hard easy soft loud quiet dark bright clean
dirty open full empty rich poor strong weak sweet sour fresh dry wet jumps runs walks sits stands sleeps eats drinks
reads writes sings plays makes takes gives finds keeps brings goes comes sees hears says tells asks calls opens closes
turns moves falls flies over under after before between through with without about into from near above below dog cat
fox horse cow pig fish mouse bear wolf lion tiger duck train plane ship boat bus bridge island village church castle
king queen prince letter number song dance dream color shoe hat coat shirt ring box key clock lamp chair bed plate
knife spoon the a of and to in is was it for on that this they we she he at by not are be have had his her or which
one two three four five six seven eight nine ten hundred first second last next every some many much very too also
never always often again today tomorrow yesterday here there now then more less most if but when while because"""
EN_WORDS = tuple(ENGLISH.split())
STOP = frozenset("the a of and to in is was it for on that this at by not are be or from near now called".split())

CHINESE = """\
的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么心多天而
能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高
意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政
海口使教西再平真听世气信北少关并内加化由却代军产入先山五太水万市眼体别处总才场师书比住员九笑性通目华报立马命张活
难神数件安表原车白应路期叫死常提感金何更反合放做系计或司利受光王果亲界及今京务制解各任至清物台象记边共风战干接它
许八特觉望直服毛林题建南度统色字请交爱让认算论百吃义科怎元社术结六功指思非流每青管夫连远资队跟带花快条院变联言权
往展该领传近留红治决周保达办运武半候七必城父强步完革深区即求品士转量空甚众技轻程告江语英基派满式李息写呢识极令黄
德收脸钱党倒未持取设始版双历越史商千片容研像找友孩站广改议形委早房音火际则首单据导影失拿网香似斯专石若兵弟谁校读
志飞观争究包组造落视济喜离虽坏兰黑紫灰蓝绿橙粉棕银苹梨桃麻雀燕鹅鸟树草云雨雪星河湖春夏秋冬晨晚猫狗鱼牛羊龙虎陈刘
杨赵吴徐孙朱胡郭梁宋郑谢韩唐冯邓曹彭曾萧田董潘袁蔡蒋余杜叶魏苏吕丁沈任姚卢傅钟姜崔谭陆范汪廖贾韦秋雅婷娜丽敏静伟
强磊洋勇艳杰娟涛超霞鹏辉玲欧阳诗涵宇轩浩然梓萱梦琪俊浩洁莹上沪杭州深圳成都武汉广津苏宁波厦沙港澳门昆贵福建济青岛
连哈尔滨沈春石庄太原郑合肥拉萨呼乌鲁木齐"""
ZH_CHARS = tuple(dict.fromkeys(CHINESE.replace("\n", "")))
# All stretches of 2 to 5 letters of the words: between them they hold every token, the rare ones too.
PIECES = tuple(sorted({word[i : i + n] for word in EN_WORDS for n in (2, 3, 4, 5) for i in range(len(word) - n + 1)}))
# Characters that open or close a request template: inside a value they would make the sentence ambiguous.
ZH_STOP = frozenset("的是我你他她在住叫吧了来自到从请名最喜爱色就家吗呢什么哪谁")
ZH_VALUE_CHARS = tuple(char for char in ZH_CHARS if char not in ZH_STOP)

ACCENTS = "áàâäãåæçéèêëíìîïñóòôöõøúùûüýÿšžčřłđğőűąęśćńễạệảếớ"
OTHER_SCRIPTS = (
    (0x3B1, 0x3C9),
    (0x430, 0x44F),
    (0x3041, 0x3093),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F64F),
    (0x2010, 0x2027),
)
VOWELS, CONSONANTS = "aeiouy", "bcdfghjklmnpqrstvwxz"
PUNCTUATION = ".,;:!?-+*/=()[]{}<>\"'#@&%$_~^|\\`"

# Real values for measuring: none of them may turn up as a value in training.
REAL_LATIN = tuple(
    "Ana Zoë Bartholomew O'Neill Priya Jean-Luc Siobhán Muhammad McDonald Nguyễn Xavier Bo Anne-Marie "
    "Søren deShawn José Oslo Reykjavik Timbuktu Zürich Ouagadougou Lima teal turquoise ochre".split()
)
REAL_CHINESE = tuple(
    "小明 欧阳娜娜 王伟 李娜 诸葛亮 司马懿 龘 赵敏 北京 乌鲁木齐 呼和浩特 杭州 靛青 藏青色 天蓝色".split()
)
REAL = frozenset(REAL_LATIN + REAL_CHINESE)


def is_held_out(value: str) -> bool:
    """True for the values that only measuring may use; ignores case so that no spelling leaks."""
    return value in REAL or zlib.crc32(value.casefold().encode()) % 16 == 0


def _letters(rng: random.Random) -> str:
    """A lower-case word of one of four kinds: random, pronounceable, real, real plus random."""
    kind, length = rng.random(), rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11))
    if kind < 0.18:
        return "".join(rng.choices(VOWELS + CONSONANTS, k=length))
    if kind < 0.4:
        return "".join(rng.choices(PIECES, k=rng.randint(1, 3)))
    if kind < 0.7:
        turn = rng.random() < 0.5
        parts = (rng.choice(VOWELS if (i % 2 == 0) == turn else CONSONANTS) for i in range(length))
        return "".join(char * (2 if rng.random() < 0.1 else 1) for char in parts)
    word = rng.choice(EN_WORDS)
    if kind < 0.85 and word not in STOP:
        return word
    return (word + "".join(rng.choices(VOWELS + CONSONANTS, k=rng.randint(1, 3))))[-length - 1 :]


def _cased(rng: random.Random, word: str) -> str:
    kind = rng.random()
    if kind < 0.68:
        return word[:1].upper() + word[1:]
    if kind < 0.86:
        return word
    if kind < 0.92:
        return word.upper()
    return "".join(char.upper() if rng.random() < 0.4 else char for char in word)


def latin(rng: random.Random) -> str:
    """One word of Latin letters, perhaps with accents, a hyphen or an apostrophe."""
    word = _letters(rng)
    if rng.random() < 0.15:
        at = rng.randrange(len(word))
        word = word[:at] + rng.choice(ACCENTS) + word[at + rng.randint(0, 1) :]
    word = _cased(rng, word)
    if rng.random() < 0.07:
        return f"{word}-{_cased(rng, _letters(rng))}"
    if rng.random() < 0.05:
        return f"{_cased(rng, rng.choice(CONSONANTS + VOWELS))}'{_cased(rng, _letters(rng))}"
    return word


def chinese(rng: random.Random, length: int) -> str:
    """`length` characters: common ones, or any of the 20,902 unified ideographs."""
    rare = rng.choice((0.0, 0.1, 0.5, 1.0))
    chars = (
        chr(rng.randint(0x4E00, 0x9FA5)) if rng.random() < rare else rng.choice(ZH_VALUE_CHARS) for _ in range(length)
    )
    return "".join("中" if char in ZH_STOP else char for char in chars)


def value(rng: random.Random, lang: str, fact: str, held_out: bool = False) -> str:
    """A name, city or colour. Mostly in the script of `lang`; a tenth crosses over."""
    while True:
        if (lang == "zh") == (rng.random() < 0.9):
            text = chinese(rng, rng.choice((1, 2, 2, 2, 3, 3, 3, 4)))
            text += "色" if fact == "colour" and rng.random() < 0.6 else ""
        else:
            text = " ".join(latin(rng) for _ in range(rng.choice((1,) * 8 + (2, 2, 3))))
        if is_held_out(text) == held_out:
            return text


def other_script(rng: random.Random) -> str:
    """A few letters of Greek, Cyrillic, Kana, Hangul, or emoji or dashes, so that every byte has been copied."""
    low, high = rng.choice(OTHER_SCRIPTS)
    return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 4)))


def english_word(rng: random.Random) -> str:
    """A word of running text: real, random, or digits."""
    kind = rng.random()
    if kind > 0.98:
        return other_script(rng)
    if kind < 0.55:
        return rng.choice(EN_WORDS)
    if kind < 0.9:
        return latin(rng)
    return str(rng.randint(0, 10 ** rng.randint(1, 6)))


def doubled_digits(rng: random.Random) -> str:
    """Digits of which some come several times in a row, with a dash now and then."""
    digits = "".join(rng.choice("0123456789") * rng.choice((1, 1, 2, 3)) for _ in range(rng.randint(1, 3)))
    return digits if rng.random() < 0.6 else f"{digits}-{rng.randint(0, 9999):04d}"


def english_text(rng: random.Random, n_words: int, doubled: bool = False) -> str:
    """Words with some punctuation between, capitalised or not. doubled: more of what stands twice, for practice."""
    real = rng.random() < 0.4
    words = [rng.choice(EN_WORDS) if real else english_word(rng) for _ in range(n_words)]
    if doubled and rng.random() < 0.15:  # numbers with runs of one digit, as telephones have them
        words = [doubled_digits(rng) if rng.random() < 0.3 else word for word in words]
    if (
        doubled and rng.random() < 0.3
    ):  # a word that stands twice has two continuations: only what is before it tells which
        words = [rng.choice(words) if rng.random() < 0.2 else word for word in words]
    marks = rng.choice((0.0, 0.1, 0.1, 0.3))
    text = " ".join(
        word + (rng.choice(PUNCTUATION if marks > 0.2 else ",,,.;:") if rng.random() < marks else "") for word in words
    )
    text = text[:1].upper() + text[1:] if rng.random() < 0.6 else text
    return text + rng.choice(("", "", ".", ".", "!", "?"))


def chinese_text(rng: random.Random, length: int) -> str:
    """Characters with some punctuation, digits and Latin words between."""
    out: list[str] = []
    rare = rng.choice((0.0, 0.0, 0.1, 0.6))
    for _ in range(length):
        kind = rng.random()
        if kind < 0.88:
            out.append(chr(rng.randint(0x4E00, 0x9FA5)) if rng.random() < rare else rng.choice(ZH_CHARS))
        else:
            out.append("，" if kind < 0.95 else str(rng.randint(0, 99)) if kind < 0.975 else latin(rng))
    return "".join(out).strip("，") + rng.choice(("", "", "。", "！", "？")) or "好"
