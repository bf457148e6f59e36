"""Telling English corrections of pictures from those in other languages and from letters thrown together."""

import unicodedata

import pytest

from omnigen2_core.english import WORDS_PER_ENGLISH_ONE, is_english, is_latin

ENGLISH = [
    "Change color of fox",
    "Change the colour to red",
    "Increase size of circle",
    "Recolor circle red",
    "Enlarge dog",
    "Use blue background",
    "Include dog",
    "Delete circle",
    "Rotate cat 90 degrees",
    "Fill circle red",
    "Set background color blue",
    "Correct spelling of sign",
    "Place cat on table",
    "Fix spelling: OPEN",
    "Adjust lighting",
    "Two foxes",
    "Recolor van red",
    "Change die color to blue",
    "Turn the sky café-brown, à la carte.",
    "Paint it in the style of Vincent van Gogh",
]

FOREIGN = {
    "French": ["Changez la couleur en rouge", "Change l'image du chat", "Place un chat à gauche de l'arbre"],
    "Spanish": ["Cambia el color a rojo", "Color rojo", "No hay perro en la imagen"],
    "Italian": ["Cambia il colore in rosso", "Rendi font rosso"],
    "Portuguese": ["Mude a cor para vermelho", "Coloque a raposa no lado direito do quadro"],
    "German": ["Ändere die Farbe in Rot", "Farbe in blau", "Make der Fuchs rot", "Füge dem Hund einen Hut hinzu"],
    "Dutch": ["Verander de kleur van de vos in rood", "Maak water groen", "De hoed van de kat is te klein"],
    "Swedish": ["Ändra färgen till röd för hunden", "Lägg till en hatt under den blå stjärnan", "Byt ring"],
    "Danish": ["Skift farven til rød for hunden", "Tilføj en hat til katten at sidde på", "Fjern ring"],
    "Polish": ["Zmień to na czerwony", "Dodaj psa do obrazu", "Zmień font"],
    "Czech": ["Změň to na červenou", "To je pes", "Přidej psa do obrázku", "Změň font"],
    "Indonesian": ["Ubah warnanya menjadi merah", "Ubah font jadi merah"],
    "Turkish": ["Rengini kırmızıya değiştir", "Kırmızı top", "İki köpek için on elma ekle"],
    "Romanian": ["Schimbă culoarea în roșu", "Include un câine", "Pune font roșu", "Pisica nu are o pălărie"],
    "Finnish": ["Muuta väri punaiseksi", "Kissa on punainen", "Vaihda sun hattu"],
    "Hungarian": ["Változtasd a színét pirosra", "A macska is legyen kék"],
    "Vietnamese": ["Đổi màu thành đỏ", "Thêm một cái mũ cho con mèo", "Làm nó to hơn"],
}
"""Of each language at least one holds an English-looking word, which only the language's own list outvotes."""


def without_accents(text):
    letters = unicodedata.normalize("NFD", text.translate(str.maketrans("øłđıĐ", "oldiD")).replace("æ", "ae"))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


@pytest.mark.parametrize("text", ENGLISH)
def test_short_corrections_without_small_words_are_english(text):
    assert is_english(text) and is_english(text.lower()) and is_english(text.upper())


@pytest.mark.parametrize(
    "text", ["Change cat's fur", "Adjust Sue's collar", "Adjust Sue’s collar", "Don't crop cat's ears", "It isn't red, it's blue"]
)
def test_what_an_apostrophe_sets_off_is_no_word_of_its_own(text):
    assert is_english(text) and is_english(text.upper())


@pytest.mark.parametrize("language", FOREIGN)
def test_other_languages_are_told_from_english_with_and_without_their_accents(language):
    for text in FOREIGN[language]:
        forms = {text, text.upper(), without_accents(text), without_accents(text).lower(), unicodedata.normalize("NFD", text)}
        assert [form for form in forms if is_english(form)] == []


@pytest.mark.parametrize("text", ["Add un chien", "Make der", "To je"])
def test_as_many_words_of_another_language_are_foreign(text):
    assert not is_english(text)


@pytest.mark.parametrize("text", ["asdf qwer zxcv", "qzx vlorp blee wjkt, snrf dobbel aab", "", "1. 2. 3. !!! ;;"])
def test_what_has_no_words_is_not_english(text):
    assert not is_english(text)


def test_a_single_english_word_among_many_unknown_ones_is_chance():
    unknown = ["vlorp"] * (WORDS_PER_ENGLISH_ONE - 1)
    assert is_english(" ".join(["make", *unknown]))
    assert not is_english(" ".join(["make", "vlorp", *unknown]))


def test_lettering_in_quotation_marks_does_not_count():
    assert is_english("Change “la casa de la playa” to \"el perro\" and 'un gato'")
    assert not is_english("Mettez “Make the circle red”")
    assert is_latin("Write 「你好世界欢迎光临」 on it") and not is_latin("把圆变成红色")
