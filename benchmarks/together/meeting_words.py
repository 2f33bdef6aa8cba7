"""Chinese text, cut by cws-multidomain, becomes imgskipgram's vectors; beside it jieba, gensim and characters."""

from __future__ import annotations

import logging
import lzma
import random
import statistics
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gensim.models import Word2Vec
from harness import Contestant, Context, Figure, MissingError, Outcome, UnequalError
from meeting_grid import seeds, shown

from cws_multidomain import Segmenter, read_corpus
from imgskipgram import ImageSkipGram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gensim.models import KeyedVectors
    from numpy.typing import NDArray

    Cut = Callable[[list[str]], list[list[str]]]

OURS, JIEBA, CHARACTERS = "cws-multidomain", "jieba", "characters"
PIPELINE, PEER = "cws-multidomain, imgskipgram", "jieba, gensim"
SETTINGS: dict[str, Any] = {"vector_size": 50, "window": 5, "negative": 5, "workers": 1}
NEIGHBOURS = 5

# --- made-up text: classes of words that can be told by the company they keep ---

CLASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "animals": (
        "老虎 狮子 大象 猴子 兔子 熊猫 松鼠 狐狸 骆驼 孔雀",
        ("动物园里的{}正在睡觉", "{}在森林里寻找食物", "一群{}跑过草原", "孩子们最喜欢看{}", "猎人发现了{}的脚印"),
    ),
    "fruit": (
        "苹果 香蕉 葡萄 西瓜 草莓 桃子 橘子 樱桃 柠檬 菠萝",
        ("妈妈买了三斤{}", "这些{}又甜又新鲜", "他把{}洗干净放进盘子", "果园里的{}成熟了", "我喝了一杯{}汁"),
    ),
    "cities": (
        "北京 上海 广州 南京 武汉 成都 西安 杭州 重庆 天津",
        ("他从{}来", "{}的人口超过一千万", "我们明年搬到{}居住", "{}市政府公布了新的规划", "这趟航班飞往{}"),
    ),
    "professions": (
        "医生 老师 律师 记者 警察 工人 农民 司机 护士 厨师",
        ("他的父亲是一名{}", "这位{}工作了二十年", "{}的收入提高了", "她毕业以后当了{}", "公司招聘有经验的{}"),
    ),
    "sports": (
        "足球 篮球 网球 排球 游泳 跑步 滑雪 体操 羽毛球 乒乓球",
        ("他获得了{}比赛的冠军", "{}运动员每天训练", "学校举办{}锦标赛", "她从小练习{}", "{}教练制定了训练计划"),
    ),
    "instruments": (
        "钢琴 吉他 小提琴 二胡 笛子 琵琶 口琴 古筝 长笛 大提琴",
        ("音乐会上他演奏了{}", "{}的声音非常优美", "她学了十年{}", "乐队需要一位{}手", "这首曲子用{}演奏"),
    ),
    "vehicles": (
        "汽车 火车 飞机 轮船 地铁 公交车 自行车 摩托车 卡车 出租车",
        ("他坐{}去上班", "这辆{}的速度很快", "{}晚点了半个小时", "乘客们下了{}", "{}的票价上涨了"),
    ),
    "furniture": (
        "桌子 椅子 沙发 柜子 书架 台灯 衣柜 地毯 窗帘 茶几",
        ("客厅里放着一张{}", "这套{}是木头做的", "我们给新房子买了{}", "他把书放在{}上", "{}的颜色跟墙壁很配"),
    ),
    "weather": (
        "大雨 小雪 台风 暴雨 冰雹 大雾 寒潮 沙尘暴 雷雨 霜冻",
        ("气象台预报明天有{}", "{}造成道路封闭", "{}持续了三天", "受{}影响学校停课", "沿海地区将出现{}天气"),
    ),
    "subjects": (
        "数学 物理 化学 历史 地理 生物 英语 语文 音乐 美术",
        ("学生们正在上{}课", "他的{}考试得了满分", "{}作业太多了", "她在中学教{}", "图书馆有许多{}教材"),
    ),
}
# Two words of any class: most of what is said says nothing of it.
NEUTRAL = (
    "昨天我跟朋友谈到了{}和{}",
    "他忽然想起{}也想起{}",
    "报纸上有关于{}和{}的文章",
    "我不知道{}还是{}更重要",
    "照片里有{}也有{}",
)  # fmt: skip


@cache
def made_up(sentences: int) -> list[str]:
    draw = random.Random(0)
    lists = {name: words.split() for name, (words, _) in CLASSES.items()}
    everything = [word for words in lists.values() for word in words]
    lines = []
    for _ in range(sentences):
        if draw.random() < 0.6:
            lines.append(draw.choice(NEUTRAL).format(*draw.sample(everything, 2)) + "。")
        else:
            name = draw.choice(list(CLASSES))
            lines.append(draw.choice(CLASSES[name][1]).format(draw.choice(lists[name])) + "。")
    return lines


# --- real text: five corpora without their spaces, and THUOCL's words by subject ---

TEXTS = ("sxu/train.txt.xz", "splits10/msr_dev.xz", "splits10/pku_dev", "ud/udc_train.conll.xz")
SUBJECTS = ("IT", "caijing", "diming", "food", "law", "medical")
LEAST, LONGEST = 30, 6  # occurrences of a word that is judged, and its characters
FEWEST = 10  # words of a subject that is judged


@cache
def real(data: str) -> tuple[list[str], dict[str, list[str]]]:
    """Lines, and of each subject the words that the text has often and no other subject has."""
    root = Path(data, "cws")
    lines = ["".join(sentence) for name in TEXTS for sentence in read_corpus(root / name)]
    lists = {}
    for subject in SUBJECTS:
        with lzma.open(root / "thuocl" / f"{subject}.txt.xz", "rt", encoding="utf-8") as file:
            lists[subject] = {line.split()[0] for line in file if line.strip()}
    everything = set().union(*lists.values())
    lengths = sorted({len(word) for word in everything if 1 < len(word) <= LONGEST})
    pieces = (line[k : k + n] for line in lines for n in lengths for k in range(len(line) - n + 1))
    counts = Counter(piece for piece in pieces if piece in everything)
    found = {}
    for subject, words in lists.items():
        others = set().union(*(more for name, more in lists.items() if name != subject))
        found[subject] = sorted(word for word in words - others if counts[word] >= LEAST)
    return lines, {subject: words for subject, words in found.items() if len(words) >= FEWEST}


def material(context: Context, sentences: int) -> tuple[list[str], dict[str, list[str]], str]:
    if context.data and context.profile == "full":
        if not Path(context.data, "cws", "thuocl").is_dir():
            raise MissingError("--data must have cws/sxu, cws/splits10, cws/ud and cws/thuocl")
        return *real(context.data), "news, reports and encyclopaedia; THUOCL's words by subject"
    return made_up(sentences), {name: words.split() for name, (words, _) in CLASSES.items()}, "made-up sentences"


# --- ways to cut ---


@cache
def segmenter() -> Segmenter:
    return Segmenter.load()


def ours(lines: list[str]) -> list[list[str]]:
    return list(segmenter().cut_many(lines, threads=1))


def jieba(lines: list[str]) -> list[list[str]]:
    import jieba

    jieba.setLogLevel(logging.ERROR)
    return [jieba.lcut(line) for line in lines]


CUTS: dict[str, Cut] = {OURS: ours, JIEBA: jieba, CHARACTERS: lambda lines: [list(line) for line in lines]}


# --- what vectors are worth ---


def vector(wv: KeyedVectors, word: str, cut: Cut) -> NDArray[Any] | None:
    """The word's own, or where its text was cut into pieces the mean of theirs."""
    if word in wv:
        return wv.get_vector(word, norm=True)  # type: ignore[no-any-return]
    pieces = [wv.get_vector(piece, norm=True) for piece in cut([word])[0] if piece in wv]
    return np.mean(pieces, 0) if pieces else None


def purity(wv: KeyedVectors, classes: Mapping[str, list[str]], cut: Cut) -> tuple[float, float]:
    """Of the five nearest of the listed words the share, in %, that is of the word's class, the mean over classes; and
    the share of the words with a vector of their own. A word without any vector has no neighbour and is nobody's."""
    words = [(word, name) for name, members in classes.items() for word in members]
    found = [vector(wv, word, cut) for word, _ in words]
    known = [place for place, x in enumerate(found) if x is not None]
    rows = np.array([found[place] for place in known], dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argsort(-cosines, 1, kind="stable")[:, :NEIGHBOURS]
    names = np.array([words[place][1] for place in known])
    shares = (names[nearest] == names[:, None]).mean(1)
    means = [shares[names == name].sum() / len(members) for name, members in classes.items()]
    return 100 * float(np.mean(means)), 100 * statistics.fmean(word in wv for word, _ in words)


def quality(context: Context, outcome: Outcome) -> None:
    lines, classes, what = material(context, context.pick(300, 6000))
    count, epochs, least = context.pick(1, 3), context.pick(1, 5), context.pick(1, 5)
    scores: dict[str, list[float]] = {}
    outcome.table = [["cut by", "purity, %", "words with a vector of their own, %", "tokens"]]
    for name, cut in CUTS.items():
        try:
            tokens = cut(lines)
        except ImportError as error:
            note = f"{name} not measured: {error}"
            outcome.figures.append(Figure("", OURS, name, verdict="missing", note=note))
            continue
        found = []
        for seed in seeds(count):
            model = ImageSkipGram(seed=seed, epochs=epochs, min_count=least, **SETTINGS).fit(tokens)
            found.append(purity(model.wv, classes, cut))
            context.progress((len(scores) + len(found) / count) / len(CUTS))
        scores[name] = [score for score, _ in found]
        own = statistics.fmean(share for _, share in found)
        outcome.table.append([name, shown(scores[name], 1), f"{own:.0f}", f"{sum(map(len, tokens)):,}"])
    for name, values in scores.items():
        if name == OURS:
            continue
        gains = [a - b for a, b in zip(scores[OURS], values, strict=True)]
        labels = f"{OURS}: {shown(scores[OURS], 1)} %", f"{name}: {shown(values, 1)} %"
        figure = Figure("neighbours of the same class", *labels, " points", statistics.fmean(gains))
        if count > 1:
            figure.low, figure.high, figure.samples = min(gains), max(gains), [round(gain, 6) for gain in gains]
        figure.headline, figure.note = name == JIEBA, "the peer is better here" if figure.value < 0 else ""
        outcome.figures.append(figure)
    outcome.equal = (
        f"The same {len(lines):,} lines ({what}), {sum(map(len, classes.values()))} words of {len(classes)} classes, "
        "and the same training but for the cuts."
    )


# --- the whole way from text to vectors ---


def whole(context: Context) -> Mapping[str, Callable[[], Contestant]]:
    lines, options = made_up(context.pick(200, 3000, 6000)), SETTINGS | {"epochs": context.pick(1, 5), "min_count": 5}

    def vectors(cut: Cut, train: Callable[[list[list[str]]], object]) -> Callable[[], Contestant]:
        def build() -> Contestant:
            cut(lines[:1])  # loads the model or the dictionary
            return Contestant(lambda: train(cut(lines)))

        return build

    def imgskipgram(tokens: list[list[str]]) -> object:
        return ImageSkipGram(**options).fit(tokens)

    def gensim(tokens: list[list[str]]) -> object:
        return Word2Vec(tokens, sg=1, **options)

    return {
        PIPELINE: vectors(ours, imgskipgram),
        "cws-multidomain, gensim": vectors(ours, gensim),
        "jieba, imgskipgram": vectors(jieba, imgskipgram),
        PEER: vectors(jieba, gensim),
    }


def same_work(context: Context) -> str:
    """No token is lost by either, and neither has many fewer to train on."""
    lines = made_up(context.pick(200, 3000, 6000))
    tokens = {OURS: ours(lines)}
    try:
        tokens[JIEBA] = jieba(lines)
    except ImportError:
        return "jieba is not installed"
    for name, cut in tokens.items():
        if ["".join(sentence) for sentence in cut] != lines:
            raise UnequalError(f"the tokens of {name} are not the text")
    counts = {name: sum(map(len, cut)) for name, cut in tokens.items()}
    if max(counts.values()) > 1.1 * min(counts.values()):
        raise UnequalError(f"tokens to train on differ by more than a tenth: {counts}")
    return (
        f"{len(lines):,} lines, of which both keep every character; {counts[OURS]:,} and {counts[JIEBA]:,} tokens; the "
        "same dimensions, window, negatives and epochs."
    )
