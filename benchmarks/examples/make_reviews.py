"""Makes up a small bookshop: `reviews.csv` and `books.csv`, to try the way from raw data to recommendations with.

python benchmarks/examples/make_reviews.py shop
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

GENRES = {
    "sea stories": ("storm", "harbour", "sailor", "reef", "lighthouse", "voyage"),
    "mountain tales": ("summit", "glacier", "ridge", "hut", "avalanche", "guide"),
    "kitchen comedies": ("soup", "oven", "recipe", "waiter", "banquet", "spice"),
    "railway mysteries": ("station", "compartment", "signal", "detective", "tunnel", "timetable"),
    "garden essays": ("rose", "compost", "spade", "orchard", "hedge", "season"),
    "city romances": ("tram", "balcony", "café", "letter", "rain", "concert"),
}
PRAISE = ("gripping", "warm", "clever", "beautifully told", "funny", "hard to put down")
BLAME = ("slow", "too long", "flat", "hard to believe", "crowded", "badly edited")


def book(number: int, draw: random.Random) -> dict[str, object]:
    genre = draw.choice(list(GENRES))
    first, second, third = draw.sample(GENRES[genre], 3)
    return {
        "item_id": f"B{number:04d}",
        "title": f"The {first.title()} and the {second.title()}",
        "description": f"One of the {genre}: a {first}, a {second} and what became of the {third}.",
        "genre": genre,
    }


def review(rating: int, genre: str, draw: random.Random) -> str:
    word, other = draw.sample(GENRES[genre], 2)
    if rating >= 4:
        return f"The {word} is {draw.choice(PRAISE)}, and the {other} too. More {genre}, please!"
    return f"I found the {word} {draw.choice(BLAME)}. The {other} could not save it."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--books", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    books = [book(number, draw) for number in range(given.books)]
    given.folder.mkdir(parents=True, exist_ok=True)
    with open(given.folder / "books.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, books[0])
        writer.writeheader()
        writer.writerows(books)
    with open(given.folder / "reviews.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "rating", "timestamp", "review"])
        for user in range(given.users):
            taste = set(draw.sample(list(GENRES), 2))
            weights = [6 if one["genre"] in taste else 1 for one in books]
            read = dict.fromkeys(draw.choices(range(given.books), weights, k=draw.randint(6, 25)))
            for day, number in enumerate(read):
                genre = books[number]["genre"]
                rating = draw.choice((4, 5) if genre in taste else (1, 2, 3, 4))
                when = 1_700_000_000 + 86_400 * (user % 30 + day)
                writer.writerow(
                    [f"reader-{user:03d}", books[number]["item_id"], rating, when, review(rating, genre, draw)]
                )


if __name__ == "__main__":
    main()
