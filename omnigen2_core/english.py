"""Whether a text that a model wrote is in English: a vote between short word lists, one a language.

The lists were chosen by hand: the commonest articles, prepositions and other small words of a language, with verbs and
colours that its corrections of pictures use. The English one is longer, since a correction such as "Enlarge dog" may have no
small word at all. A word that is frequent in English and elsewhere alike ("in", "place", "van") stands in both lists and so
decides nothing. Rarer foreign words that are an English noun to draw are left out ("links" is no German word here).
"""

from __future__ import annotations

import re
import unicodedata

_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|「[^」]*」|(?<!\w)'[^']*'(?!\w)")
_WORD = re.compile(r"[^\W\d_]+")
_CONTRACTED = re.compile(r"(?:n['’]t|['’](?:s|d|m|re|ve|ll))\b", re.IGNORECASE)
"""What "isn't", "it's" and "the cat's" add to a word: "s" and "ve" would count as words of other languages."""
_UNDIVIDED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ı": "i", "æ": "ae", "ß": "ss"})
"""Letters that Unicode does not divide into a plain one and an accent."""


def _plain(text: str) -> str:
    """A text of lower-case letters without its accents, which models leave out at times."""
    letters = unicodedata.normalize("NFKD", text).translate(_UNDIVIDED)
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _plain_words(text: str) -> frozenset[str]:
    return frozenset(_plain(text).split())


_ENGLISH = frozenset(
    # What holds sentences together.
    "the a an this that these those there it its they their them he him his she her i you your we our who which what where "
    "when while and or but not no so as if of in into on onto at by for from with without to toward towards through than then "
    "over under above below behind beside between among around across along against near next inside outside off out up down "
    "away back upon about be is are was were been has have had do does should must can could would will more less most least "
    "too very only just also still both each every all any some other another same instead like many much several single "
    # What corrections ask for and problems complain of.
    "make made add remove replace move put draw turn paint show shows shown clear keep give change increase decrease reduce "
    "enlarge shrink expand extend recolor recolour include delete erase eliminate exclude fill set fix correct adjust modify "
    "alter edit swap switch convert transform rotate flip mirror tilt bend straighten shift align center centre brighten "
    "darken lighten sharpen blur soften smooth raise lower lift drop resize scale widen narrow lengthen shorten stretch crop "
    "zoom place position insert attach render redraw repaint restore rewrite write spell open close cover hide reveal use let "
    "ensure pour separate split merge combine duplicate improve enhance simplify clean wear wears wearing hold holds holding "
    "look looks looking face facing stand standing sit sitting need needs take bring cut missing wrong apply create produce "
    "depict introduce preserve retain maintain match substitute repair undo relocate reposition realign vary spread wrap tie "
    "connect colorize desaturate highlight emphasize thicken capitalize spelled misspelled says reads extra fewer "
    # What pictures are made of.
    "color colors colour colours size shape number amount side edge corner part top bottom middle background foreground front "
    "scene picture image style pose light lighting shadow shadows brightness contrast text letter letters lettering word words "
    "spelling sign line texture material pattern circle square triangle diamond cross ring sky sun moon cloud clouds tree "
    "trees grass water snow flower flowers house building road table chair cat cats dog dogs bird horse fox man men woman "
    "women people person child boy girl head hair eye eyes hand hands arm leg fur tail hat shirt dress car van ball pan pot "
    "red green blue yellow orange purple pink brown black white gray grey golden silver dark darker bright brighter pale large "
    "larger small smaller big bigger tiny huge tall taller short shorter long longer wide wider thin thick high higher full "
    "empty one two three four five six seven eight nine ten degrees half double right left upper photo portrait title font die "
    "rod plus sharp soft warm warmer cool cooler old young new".split()
)
_FOREIGN = {
    "fr": _plain_words(
        "le la les l un une des du de et est dans sur avec sans pour en au aux ce il on que qui pas à ne plus ajoute ajoutez "
        "ajouter change changez changer mets mettez enlève enlevez remplace remplacez place image couleur rouge bleu vert noir "
        "blanc"
    ),
    "es": _plain_words(
        "el la los las un una unos de del y en con sin por para que es se lo al a no más su pon haz cambia cambie cambiar "
        "añade agrega quita elimina reemplaza color rojo roja azul verde negro blanco fondo"
    ),
    "it": _plain_words(
        "il lo la i gli le l un una di del della dei e in con senza per nel al a da che è non so più su metti rendi cambia "
        "cambiare aggiungi rimuovi togli sostituisci colore rosso rossa blu verde nero bianco sfondo"
    ),
    "pt": _plain_words(
        "o a os as um uma de do da dos das e em no na com sem por para que é não mais ao se mude muda coloque adicione remova "
        "troque substitua torne cor vermelho vermelha azul verde preto branco fundo"
    ),
    "de": _plain_words(
        "der die das den dem des ein eine einen einem und ist im in mit ohne zu auf an nicht soll sind hat von für so es mach "
        "mache ändere füge entferne ersetze setze farbe rot blau grün schwarz weiß größer hintergrund position hand text"
    ),
    "nl": _plain_words(
        "de het een en van in met zonder op aan is niet of over te dat die er naar bij maak verander voeg verwijder vervang "
        "zet kleur rood blauw groen zwart groter achtergrond water"
    ),
    "sv": _plain_words(
        "en ett och i på med utan är inte det den av som till för om att under gör ändra byt lägg ta bort färg färgen röd rött "
        "blå grön svart vit större bakgrund bakgrunden"
    ),
    "da": _plain_words(
        "en et og i på med uden er ikke det den af som til for at om over under skal gør lav skift ændr tilføj fjern erstat "
        "farve farven rød rødt blå grøn hvid større baggrund baggrunden"
    ),
    "pl": _plain_words(
        "na do z w i a to nie jest się o od za po ten ta jak bez by dla zmień dodaj usuń zamień zrób umieść kolor czerwony "
        "czerwone niebieski zielony czarny biały tło"
    ),
    "cs": _plain_words(
        "na do z v a i to je se o od za s ne není pro jako ten po změň změňte přidej přidejte odstraň nahraď udělej umísti "
        "barvu barva červený červenou červené modrý zelený černý bílý pozadí"
    ),
    "id": _plain_words(
        "dan di ke yang dengan untuk ini itu dari pada tidak tanpa ada lebih jadi menjadi buat ubah ganti tambahkan hapus "
        "letakkan warna merah biru hijau hitam putih latar"
    ),
    "tr": _plain_words(
        "ve bir bu şu da de ile için daha çok değil olan var yok her gibi yap yapın değiştir ekle sil kaldır koy rengi rengini "
        "kırmızı kırmızıya mavi yeşil siyah beyaz arka"
    ),
    "ro": _plain_words(
        "un o și de la în cu pe nu este are din să pentru fără mai al a schimbă adaugă elimină înlocuiește pune fă culoarea "
        "roșu albastru verde negru alb fundal fundalul"
    ),
    "fi": _plain_words(
        "ja on ei se että ne tai kuin mutta oli ole ilman kanssa muuta vaihda lisää poista korvaa aseta väri väriä punainen "
        "punaiseksi sininen vihreä musta valkoinen tausta"
    ),
    "hu": _plain_words(
        "a az egy és nem is van hogy meg de ne el ki be csak most változtasd módosítsd cseréld adj tedd töröld távolítsd "
        "legyen színét színű piros pirosra kék zöld fekete fehér háttér hátteret"
    ),
    "vi": _plain_words(
        "và là có không của cho một cái này nó với trong trên được thành đổi thay thêm xóa bỏ làm đặt màu đỏ xanh trắng nền"
    ),
}
WORDS_PER_ENGLISH_ONE = 10
"""At least one word in so many must be of the English list: letters thrown together may hold a word by chance."""


def is_latin(text: str) -> bool:
    """Whether most letters outside quotation marks, which may hold lettering to be drawn, are of the Latin script."""
    letters = [letter for letter in _QUOTED.sub("", text) if letter.isalpha()]
    return sum(letter < "\u0250" for letter in letters) * 2 >= len(letters)


def is_english(text: str) -> bool:
    """Whether a text is of the Latin script and its words outside quotation marks are rather English than anything else.

    At least one in `WORDS_PER_ENGLISH_ONE` must be of the English list, and more than are of that of any other language.
    English words count as they are written, those of other languages without their accents too. Text without any letters is
    not English.

    Rules out the other languages of the lists and letters thrown together; not what is English and makes no sense. Mistakes
    for English what has an English-looking word and none of its own that is listed: a language that has no list, or a few
    words (Vietnamese "Them hat"). Mistakes for foreign what has no listed English word ("Fasten button") and a very short
    correction with a foreign name ("Add El Greco").
    """
    words, own, foreign = _votes(text)
    return is_latin(text) and own * WORDS_PER_ENGLISH_ONE >= words and own > foreign


def is_another_language(text: str) -> bool:
    """Whether a text is of another script, or its words are rather of another listed language than English.

    Names and rare words alone, as in a list of tags, are of none.
    """
    _, own, foreign = _votes(text)
    return not is_latin(text) or foreign > own


def _votes(text: str) -> tuple[int, int, int]:
    """How many words a text has outside quotation marks, how many are listed as English, and how many as the other language
    that has the most."""
    bare = _QUOTED.sub("", unicodedata.normalize("NFC", text))
    words = [word.lower() for word in _WORD.findall(_CONTRACTED.sub("", bare))]
    plain = [_plain(word) for word in words]
    foreign = max(sum(word in listed for word in plain) for listed in _FOREIGN.values())
    return len(words), sum(word in _ENGLISH for word in words), foreign
