//! Codes of languages as the world writes them: ISO 639-1 and -3, and with script or region as in BCP 47, `de`, `deu`, `EN-GB`,
//! `deu_Latn`, `pt_BR`, `zh-Hans`.

/// A language code, taken apart. Two codes mean the same language if `language` is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    /// ISO 639-1 where there is such a code, else ISO 639-3, in lower case.
    pub language: String,
    /// ISO 15924, in lower case: `latn`, `hans`.
    pub script: Option<String>,
    /// ISO 3166, in lower case: `gb`.
    pub region: Option<String>,
}

impl Tag {
    /// Takes a code apart; none for what has not the form of one.
    pub fn parse(code: &str) -> Option<Tag> {
        let lower = code.trim().to_ascii_lowercase();
        let mut parts = lower.split(['-', '_']);
        let first = parts.next()?;
        if !(2..=3).contains(&first.len()) || !first.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return None;
        }
        let (mut script, mut region) = (None, None);
        for part in parts {
            match part.len() {
                // mBART's "no region".
                2 if part == "xx" => {}
                2 | 3 => region = Some(part.to_owned()),
                4 => script = Some(part.to_owned()),
                _ => return None,
            }
        }
        if first == "zh" && script.is_none() {
            script = region.as_deref().and_then(script_of_chinese).map(str::to_owned);
        }
        let entry = entry(first);
        let language = entry.map_or(first, |(two, ..)| two).to_owned();
        Some(Tag { language, script, region })
    }

    /// The English name of the language; its code where the table does not know it.
    pub fn name(&self) -> &str {
        entry(&self.language).map_or(&self.language, |(.., name)| name)
    }

    /// How well another code means the same: 0 if it does not.
    pub fn likeness(&self, other: &Tag) -> usize {
        let agree = |a: &Option<String>, b: &Option<String>| match (a, b) {
            (Some(a), Some(b)) => Some(a == b).filter(|same| *same).map(|_| 2),
            (None, None) => Some(1),
            _ => Some(0),
        };
        if self.language != other.language {
            return 0;
        }
        // Another script is another language to a reader; another region is not.
        let Some(script) = agree(&self.script, &other.script) else { return 0 };
        1 + 4 * script + agree(&self.region, &other.region).unwrap_or(0)
    }
}

fn script_of_chinese(region: &str) -> Option<&'static str> {
    match region {
        "cn" | "sg" => Some("hans"),
        "tw" | "hk" | "mo" => Some("hant"),
        _ => None,
    }
}

/// The entry of a code: the shortest code, and the name.
fn entry(code: &str) -> Option<(&'static str, &'static str)> {
    LANGUAGES.lines().find_map(|line| {
        let (codes, name) = line.trim().split_once(" = ")?;
        let mut codes = codes.split(' ');
        let first = codes.next()?;
        (first == code || codes.any(|other| other == code)).then_some((first, name))
    })
}

/// Codes of one language, the shortest first, and its name. Behind the three-letter code of ISO 639-3 stand the older one of
/// ISO 639-2 and the single languages that models mean where others write the macrolanguage.
const LANGUAGES: &str = "\
    aa aar = Afar
    ab abk = Abkhazian
    ace = Acehnese
    af afr = Afrikaans
    ak aka = Akan
    am amh = Amharic
    an arg = Aragonese
    ar ara arb = Arabic
    as asm = Assamese
    ast = Asturian
    av ava = Avaric
    awa = Awadhi
    ay aym ayr = Aymara
    az aze azj = Azerbaijani
    ba bak = Bashkir
    ban = Balinese
    be bel = Belarusian
    bem = Bemba
    bg bul = Bulgarian
    bho = Bhojpuri
    bm bam = Bambara
    bn ben = Bengali
    bo bod tib = Tibetan
    br bre = Breton
    bs bos = Bosnian
    bug = Buginese
    ca cat = Catalan
    ce che = Chechen
    ceb = Cebuano
    ckb = Central Kurdish
    co cos = Corsican
    crh = Crimean Tatar
    cs ces cze = Czech
    cv chv = Chuvash
    cy cym wel = Welsh
    da dan = Danish
    de deu ger = German
    din dik = Dinka
    dv div = Divehi
    dyu = Dyula
    dz dzo = Dzongkha
    ee ewe = Ewe
    el ell gre = Greek
    en eng = English
    eo epo = Esperanto
    es spa = Spanish
    et est ekk = Estonian
    eu eus baq = Basque
    fa fas per pes = Persian
    ff ful fuv = Fulah
    fi fin = Finnish
    fj fij = Fijian
    fo fao = Faroese
    fon = Fon
    fr fra fre = French
    fur = Friulian
    fy fry = Western Frisian
    ga gle = Irish
    gd gla = Scottish Gaelic
    gl glg = Galician
    gn grn = Guarani
    gu guj = Gujarati
    gv glv = Manx
    ha hau = Hausa
    he heb iw = Hebrew
    hi hin = Hindi
    hr hrv = Croatian
    ht hat = Haitian Creole
    hu hun = Hungarian
    hy hye arm = Armenian
    ia ina = Interlingua
    id ind = Indonesian
    ig ibo = Igbo
    ilo = Ilocano
    io ido = Ido
    is isl ice = Icelandic
    it ita = Italian
    iu iku = Inuktitut
    ja jpn = Japanese
    jv jav = Javanese
    ka kat geo = Georgian
    kab = Kabyle
    kac = Kachin
    kam = Kamba
    kbp = Kabiye
    kea = Kabuverdianu
    kg kon = Kongo
    ki kik = Kikuyu
    kk kaz = Kazakh
    kl kal = Kalaallisut
    km khm = Khmer
    kmb = Kimbundu
    kn kan = Kannada
    ko kor = Korean
    kr kau knc = Kanuri
    ks kas = Kashmiri
    ku kur kmr = Kurdish
    kv kom = Komi
    kw cor = Cornish
    ky kir = Kyrgyz
    la lat = Latin
    lb ltz = Luxembourgish
    lg lug = Ganda
    li lim = Limburgish
    lij = Ligurian
    lmo = Lombard
    ln lin = Lingala
    lo lao = Lao
    lt lit = Lithuanian
    ltg = Latgalian
    lu lub = Luba-Katanga
    lua = Luba-Lulua
    luo = Luo
    lus = Mizo
    lv lav lvs = Latvian
    mag = Magahi
    mai = Maithili
    mg mlg plt = Malagasy
    mh mah = Marshallese
    mi mri mao = Maori
    min = Minangkabau
    mk mkd mac = Macedonian
    ml mal = Malayalam
    mn mon khk = Mongolian
    mos = Mossi
    mr mar = Marathi
    ms msa may zsm = Malay
    mt mlt = Maltese
    my mya bur = Burmese
    na nau = Nauru
    nb nob = Norwegian Bokmål
    ne nep npi = Nepali
    nl nld dut = Dutch
    nn nno = Norwegian Nynorsk
    no nor = Norwegian
    ns nso = Northern Sotho
    nus = Nuer
    nv nav = Navajo
    ny nya = Chichewa
    oc oci = Occitan
    om orm gaz = Oromo
    or ori ory = Odia
    os oss = Ossetian
    pa pan = Punjabi
    pag = Pangasinan
    pap = Papiamento
    pl pol = Polish
    ps pus pbt = Pashto
    pt por = Portuguese
    qu que quy = Quechua
    rm roh = Romansh
    rn run = Rundi
    ro ron rum = Romanian
    ru rus = Russian
    rw kin = Kinyarwanda
    sa san = Sanskrit
    sat = Santali
    sc srd = Sardinian
    scn = Sicilian
    sd snd = Sindhi
    se sme = Northern Sami
    sg sag = Sango
    shn = Shan
    si sin = Sinhala
    sk slk slo = Slovak
    sl slv = Slovenian
    sm smo = Samoan
    sn sna = Shona
    so som = Somali
    sq sqi alb als = Albanian
    sr srp = Serbian
    ss ssw = Swati
    st sot = Southern Sotho
    su sun = Sundanese
    sv swe = Swedish
    sw swa swh = Swahili
    szl = Silesian
    ta tam = Tamil
    te tel = Telugu
    tg tgk = Tajik
    th tha = Thai
    ti tir = Tigrinya
    tk tuk = Turkmen
    tl tgl fil = Tagalog
    tn tsn = Tswana
    to ton = Tonga
    tpi = Tok Pisin
    tr tur = Turkish
    ts tso = Tsonga
    tt tat = Tatar
    tum = Tumbuka
    tw twi = Twi
    ty tah = Tahitian
    ug uig = Uyghur
    uk ukr = Ukrainian
    umb = Umbundu
    ur urd = Urdu
    uz uzb uzn = Uzbek
    ve ven = Venda
    vec = Venetian
    vi vie = Vietnamese
    wa wln = Walloon
    war = Waray
    wo wol = Wolof
    xh xho = Xhosa
    yi yid ydd = Yiddish
    yo yor = Yoruba
    yue = Cantonese
    za zha = Zhuang
    zh zho chi cmn = Chinese
    zu zul = Zulu
";

#[cfg(test)]
mod tests {
    use super::*;

    fn likeness(a: &str, b: &str) -> usize {
        let tag = |code| Tag::parse(code).expect("a code");
        tag(a).likeness(&tag(b))
    }

    #[test]
    fn codes_of_all_kinds_mean_the_same_language() {
        for (a, b) in [("de", "deu_Latn"), ("EN-GB", "en_XX"), ("ger", "de_DE"), ("zh-CN", "zho_Hans"), ("fil", "tl")] {
            assert!(likeness(a, b) > 0, "{a} {b}");
        }
        for (a, b) in [("de", "nl"), ("zh-TW", "zho_Hans"), ("sr-Latn", "srp_Cyrl")] {
            assert_eq!(likeness(a, b), 0, "{a} {b}");
        }
        assert!(likeness("pt-BR", "pt_BR") > likeness("pt-BR", "pt_PT"));
        assert!(likeness("zh", "zh") > likeness("zh", "zho_Hans"));
        for wrong in ["", "e", "english", "de-", "12", "d\u{e9}"] {
            assert_eq!(Tag::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(Tag::parse("DEU").map(|tag| tag.name().to_owned()).as_deref(), Some("German"));
        assert_eq!(Tag::parse("xyz").map(|tag| tag.name().to_owned()).as_deref(), Some("xyz"));
    }

    #[test]
    fn no_code_stands_for_two_languages() {
        let lines = LANGUAGES.lines().filter_map(|line| line.trim().split_once(" = "));
        let mut codes: Vec<&str> = lines.flat_map(|(codes, _)| codes.split(' ')).collect();
        let all = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all);
        assert!(all > 300);
    }
}
